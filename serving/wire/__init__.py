"""Wire formats: messages to features and back; the only place that knows both."""
