-- Purpose: which image each line of a file of decisions means, whose label was judged, and when the image was decided on
--          last.
-- Inputs:  given (line, image_id, uri, generation; one of the first two may be null, and the last), stored_images,
--          stored_labels, stored_reviews.
-- Grain:   one row per line that names an image of the store. Its generation is the given one or, where none is given, the
--          newest that has labeled the image; null where there is no such label.
with named as (
    select g.line, g.generation, i.image_id, i.uri
    from given as g
    join stored_images as i on i.image_id = g.image_id
    union all
    select g.line, g.generation, i.image_id, i.uri
    from given as g
    join stored_images as i on i.uri = g.uri
    where g.image_id is null
)
select
    n.line, n.image_id, n.uri, max(l.generation)::INT as generation,
    (select max(decided_at) from stored_reviews as r where r.image_id = n.image_id) as decided_at
from named as n
left join stored_labels as l on l.image_id = n.image_id and l.generation = coalesce(n.generation, l.generation)
group by n.line, n.image_id, n.uri
order by n.line;
