"""Who may ask for what: callers, tokens, certificates and limits, the same on every port."""
