-- Purpose: the images that nobody has reviewed.
-- Inputs:  everything (rows of the table browse, or what stands in for it), stored_reviews.
-- Grain:   one row per image and generation.
select e.* from everything as e
anti join stored_reviews as r on r.image_id = e.image_id;
