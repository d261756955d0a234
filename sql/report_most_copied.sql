-- Purpose: images of the classes that copy most, the same number of each class so that one class does not fill the page.
-- Inputs:  kept (a manifest's rows).
-- Grain:   one row per image that counts more than once, the most copied first, then the least confident.
-- Parameters: $labels (the classes), $each (images of each), $most (how many in all).
with noticed as (
    -- not a window: that would sort every row of these classes, with its uri
    select unnest(arg_min(image_id, (-copies, confidence, image_id), $each)) as image_id
    from kept
    where copies > 1 and list_contains($labels, label)
    group by label
)
select image_id, uri, shard, byte_offset, byte_length, source, class_name, confidence, copies, weight
from kept
join noticed using (image_id)
order by copies desc, confidence, image_id
limit $most;
