-- Purpose: images without an id or uri, with a split or status that there is not, with a class in the pool or none outside
--          of it, or with a class that the store does not have.
-- Inputs:  stored_images, stored_classes.
-- Grain:   one row per such image; none in a sound store.
-- Mend:    bring images back as they were before; a class may have gone, too
select i.image_id, i.uri, i.split, i.status, i.label
from stored_images as i
left join stored_classes as c on c.label = i.label
where i.image_id is null or i.image_id < 0
   or i.uri is null
   or coalesce(i.split not in ('labeled', 'unlabeled', 'holdout'), true)
   or coalesce(i.status not in ('ok', 'unreadable', 'unscanned'), true)
   or (i.split = 'unlabeled') <> (i.label is null)
   or (i.label is null) <> (c.label is null)
order by i.image_id;
