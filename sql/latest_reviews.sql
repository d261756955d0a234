-- Purpose: the latest review of each image, also a skip that took its earlier decisions back; of one microsecond, as in
--          decisions.sql.
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
