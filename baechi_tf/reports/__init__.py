"""What a plan is and predicts: as plain data, as text, and as a trace."""
