-- Purpose: the first images of each class, as many as the quota: the highest score first, of equals the lower image_id.
-- Inputs:  eligible.
-- Grain:   one row per kept image; rank counts from 1 within the class.
-- Parameters: $per_class.
select *
from (select *, row_number() over (partition by label order by score desc, image_id) as rank from eligible)
where rank <= $per_class;
