-- Purpose: the images whose latest review is a certain decision, or any.
-- Inputs:  everything (rows of the table browse, or what stands in for it), latest_reviews.
-- Grain:   one row per image and generation.
-- Parameters: $decision (accept, reject, relabel, skip or any).
select * from everything
where image_id in (select image_id from latest_reviews where $decision = 'any' or decision = $decision);
