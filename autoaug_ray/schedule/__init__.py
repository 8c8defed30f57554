"""For whoever asks which run comes next and on which machine: the queue, Ray Tune, clusters. Ray is imported here and in bench only."""
