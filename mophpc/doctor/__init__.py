"""What `mophpc doctor` finds out about the ranks, their hosts and what lies between them."""
