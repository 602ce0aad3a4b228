"""What an owner decides on: offers, conflicts with offers in force, previews as a partner, effects of a new version."""
