-- Purpose: the images that are not in a manifest.
-- Inputs:  reviewed (rows of the table browse, or what stands in for it), kept (the manifest's rows).
-- Grain:   one row per image and generation.
select r.* from reviewed as r
anti join kept as k on k.image_id = r.image_id;
