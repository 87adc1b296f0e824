"""Policies: whatever writes the next tokens of an exploration. One file each."""
