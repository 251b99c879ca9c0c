"""Messages to features and back; the only place that knows how both look."""
