-- Purpose: the images that repeat another one, as the newest scan of `curator quality duplicates` found them.
-- Inputs:  stored_duplicates, which each scan replaces whole; empty where there was none.
-- Grain:   one row per image that has a twin. leak: outside the holdout, and a twin of one of its
--          images. labeled_twin: a twin of a labeled image. group_id: the lowest image_id of those that repeat each
--          other; holdout images join no others to a group.
select image_id, group_id, nearest, kind, distance, leak, holdout_twin, labeled_twin, scan, found_at
from stored_duplicates;
