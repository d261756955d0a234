-- Purpose: the latest review of each image, also a skip that took its earlier decisions back. Of reviews of the same
--          microsecond one wins, the same each time.
-- Inputs:  stored_reviews.
-- Grain:   one row per reviewed image.
select image_id, generation, decision, new_label, decided_at
from (
    select
        image_id, generation, decision, new_label, decided_at,
        row_number() over (partition by image_id order by decided_at desc, decision desc, new_label) as nth
    from stored_reviews
)
where nth = 1;
