"""What Byzantine workers send instead of their updates."""
