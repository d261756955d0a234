-- Purpose: images drawn for an audit that are not in the store.
-- Inputs:  stored_audits, stored_images.
-- Grain:   one row per such image; none in a sound store.
-- Mend:    bring images back as they were before rows left them
select a.image_id, a.generation, a.seed
from stored_audits as a
anti join stored_images as i on i.image_id = a.image_id
order by a.generation, a.seed, a.image_id;
