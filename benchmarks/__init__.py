"""What is measured and compared; the test command does not collect it."""
