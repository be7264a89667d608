"""What each rank does: it walks its list of visits, and holds states of configs."""
