"""Which run comes next, and on which machine. Ray is imported here and in bench/ only."""
