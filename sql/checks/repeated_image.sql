-- Purpose: images that stand in the manifest more than once; only copies may repeat an image.
-- Inputs:  rows.
-- Grain:   one row per repeated image; none in a sound manifest.
select image_id, count(*) as times
from rows
group by image_id
having count(*) > 1
order by image_id;
