-- Purpose: decisions on images that are not in the store, that are none, or that give a class which the store does not have.
-- Inputs:  stored_reviews, stored_images, stored_classes.
-- Grain:   one row per such decision; none in a sound store.
-- Mend:    bring images, classes or reviews back as they were before
select r.image_id, r.decision, r.new_label, r.reviewer, r.decided_at
from stored_reviews as r
left join (select distinct image_id from stored_images) as i on i.image_id = r.image_id
left join stored_classes as c on c.label = r.new_label
where i.image_id is null
   or coalesce(r.decision not in ('accept', 'reject', 'relabel', 'skip'), true)
   or (r.decision = 'relabel') <> (r.new_label is not null)
   or (r.new_label is null) <> (c.label is null)
order by r.decided_at, r.image_id;
