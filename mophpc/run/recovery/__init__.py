"""What is written down so that a run which was cut off goes on, and how it goes on."""
