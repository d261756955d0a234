-- Purpose: images that must not be trained on because they show an image of the holdout: those with its bytes, and those
--          that the newest scan of `curator quality leaks` or `quality duplicates` found to be twins of it.
-- Inputs:  holdout_twins, stored_duplicates (empty where nothing was scanned).
-- Grain:   one row per image outside the holdout.
select image_id from holdout_twins
union
select image_id from stored_duplicates where leak;
