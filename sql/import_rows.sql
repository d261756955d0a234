-- Purpose: which image each row of a file of soft labels belongs to, and what is wrong with it.
-- Inputs:  keyed (row, image_id; null where the file's uri is unknown), stored_images, stored_labels.
-- Grain:   one row per row of the file, in its order.
-- Parameters: $generation.
select
    k.row, k.image_id, i.split,
    case
        when i.image_id is null then 'names an image that is not in the store'
        when k.occurrence > 1 then 'names an image that an earlier row names'
        when l.image_id is not null then 'names an image that this generation has labeled already'
        when i.status = 'unreadable' then 'names an image that cannot be read'
    end as problem
from (select row, image_id, row_number() over (partition by image_id order by row) as occurrence from keyed) as k
left join stored_images as i on i.image_id = k.image_id
left join (select image_id from stored_labels where generation = $generation) as l on l.image_id = k.image_id
order by k.row;
