-- Purpose: what people decided in the end: the latest review of each image, unless it is a skip, which takes the image's
--          earlier decisions back.
-- Inputs:  latest_reviews.
-- Grain:   one row per reviewed image.
select image_id, generation::INT as generation, decision, new_label
from latest_reviews
where decision <> 'skip';
