-- Purpose: one page of the images, the highest first; of equals the lower image_id.
-- Inputs:  found (gallery.sql).
-- Grain:   one row per image.
-- Parameters: $measure (confidence, margin or entropy), $from and $to (ends, included, between which the page lies; null
--             for none), $first (rows of that range to pass over), $size.
with measured as (
    select
        *,
        -- becomes the column itself, so that groups of rows without a place on the page are passed over
        case $measure when 'confidence' then confidence when 'margin' then margin else entropy end as value
    from found
)
select * exclude (value)
from measured
where ($from::FLOAT is null or value >= $from::FLOAT) and ($to::FLOAT is null or value <= $to::FLOAT)
order by value desc, image_id
limit $size offset $first;
