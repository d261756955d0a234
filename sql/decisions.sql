-- Purpose: what people decided in the end: the latest review of each image. A skip as the latest takes the image's
--          earlier decisions back. Of decisions of the same microsecond one wins, the same each time.
-- Inputs:  stored_reviews.
-- Grain:   one row per reviewed image.
select image_id, generation::INT as generation, decision, new_label
from (
    select
        image_id, generation, decision, new_label,
        row_number() over (partition by image_id order by decided_at desc, decision desc, new_label) as nth
    from stored_reviews
)
where nth = 1 and decision <> 'skip';
