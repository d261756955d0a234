-- Purpose: images that a generation labeled more than once.
-- Inputs:  stored_labels.
-- Grain:   one row per image and generation; none in a sound store.
-- Mend:    bring labels back as they were before the rows came twice
select image_id, generation, count(*) as times
from stored_labels
group by image_id, generation
having count(*) > 1
order by generation, image_id;
