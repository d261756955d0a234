-- Purpose: which of $folds parts each image of the labeled split is in. Every class is dealt out evenly, in an order that
--          only image ids, content hashes and the seed decide. Pictures with the same bytes go into one fold: a model that was
--          trained on one of them knows the other.
-- Inputs:  labeled (the rows of sql/labeled_rows.sql), stored_images.
-- Grain:   one row per image: image_id, fold from 0 to $folds - 1.
-- Parameters: $folds, $seed.
with
keyed as (
    select l.image_id, l.label, coalesce(i.content_hash, l.image_id::VARCHAR) as picture
    from labeled as l
    join stored_images as i on i.image_id = l.image_id
),
pictures as (
    select picture, min(label) as label, md5_number_lower(picture || '/' || $seed) as place
    from keyed
    group by picture
),
dealt as (
    select
        picture,
        -- each class begins at another fold, else the first one would get what is left over of all small classes
        (row_number() over (partition by label order by place, picture) + md5_number_lower(label || '/' || $seed) % $folds)
        % $folds as fold
    from pictures
)
select k.image_id, d.fold::INT as fold
from keyed as k
join dealt as d on d.picture = k.picture;
