"""Authentication and authorisation: callers, tokens, certificates and limits, the same on every port."""
