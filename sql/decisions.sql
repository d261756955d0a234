-- Purpose: what people decided in the end: the latest review of each image. A skip as the latest takes the image's
--          earlier decisions back.
-- Inputs:  stored_reviews.
-- Grain:   one row per reviewed image.
select
    image_id,
    arg_max(decision, decided_at) as decision,
    arg_max(new_label, decided_at) as new_label
from (
    -- a null new_label must win too, which arg_max would pass over
    select image_id, decision, coalesce(new_label, -1) as new_label, decided_at
    from stored_reviews
)
group by image_id
having arg_max(decision, decided_at) <> 'skip';
