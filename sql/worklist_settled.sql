-- Purpose: the images that need no look any more: a decision on them is in force, or the latest is a skip of this generation
--          or a later one; a skip of no generation is a decision taken back.
-- Inputs:  stored_reviews.
-- Grain:   one row per such image.
-- Parameters: $generation.
select image_id
from (
    select
        image_id, decision, generation,
        row_number() over (partition by image_id order by decided_at desc, decision desc, new_label) as nth
    from stored_reviews
)
where nth = 1 and (decision <> 'skip' or generation >= $generation);
