-- Purpose: uris that several images have. By a hash of the uri first: ten million of them take less memory as numbers.
-- Inputs:  stored_images.
-- Grain:   one row per such uri; none in a sound store.
-- Mend:    bring images back as they were before the rows came twice
with alike as (
    select hash(uri) as hashed from stored_images group by hash(uri) having count(*) > 1
)
select uri, count(*) as times
from stored_images
where hash(uri) in (select hashed from alike)
group by uri
having count(*) > 1
order by uri;
