"""What a handover image says, read without booting a kernel."""
