"""What rank 0 does besides: it takes records, plans, decides, and tells people and trackers."""
