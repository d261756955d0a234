-- Purpose: which labeled image each row of a file of out-of-sample soft labels belongs to, and what is wrong with it.
-- Inputs:  keyed (row, image_id; null where the file's uri is unknown), stored_images.
-- Grain:   one row per row of the file, in its order.
select
    k.row, k.image_id, i.split,
    case
        when i.image_id is null then 'names an image that is not in the store'
        when k.occurrence > 1 then 'names an image that an earlier row names'
        when i.split <> 'labeled' then format('names an image of the split {}, which has no given label to judge', i.split)
    end as problem
from (select row, image_id, row_number() over (partition by image_id order by row) as occurrence from keyed) as k
left join stored_images as i on i.image_id = k.image_id
order by k.row;
