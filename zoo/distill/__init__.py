"""From structures and a teacher to a student: labels, loss, training."""
