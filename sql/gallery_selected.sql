-- Purpose: the images that have a certain source in a manifest.
-- Inputs:  reviewed (rows of the table browse, or what stands in for it), kept (the manifest's rows).
-- Grain:   one row per image and generation.
-- Parameters: $source (pseudo, review, or any).
select * from reviewed
where image_id in (select image_id from kept where $source = 'any' or source = $source);
