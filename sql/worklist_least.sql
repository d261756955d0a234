-- Purpose: the value that an image must have to be among the first, by what is listed so far: what comes later need not be
--          looked up where it has less.
-- Inputs:  listed (image_id, value).
-- Grain:   one row; none where fewer images are listed than are wanted.
-- Parameters: $limit.
select least
from (select max(value) as least from listed group by image_id)
order by least desc
limit 1 offset $limit - 1;
