-- Purpose: which image each line of a file of decisions means, the newest generation that has labeled it, and when it was
--          decided on last.
-- Inputs:  given (line, image_id, uri; one of the two is null), stored_images, stored_labels, stored_reviews.
-- Grain:   one row per line that names an image of the store.
with named as (
    select g.line, i.image_id
    from given as g
    join stored_images as i on i.image_id = g.image_id
    union all
    select g.line, i.image_id
    from given as g
    join stored_images as i on i.uri = g.uri
)
select
    n.line, n.image_id, max(l.generation)::INT as generation,
    (select max(decided_at) from stored_reviews as r where r.image_id = n.image_id) as decided_at
from named as n
left join stored_labels as l on l.image_id = n.image_id
group by n.line, n.image_id
order by n.line;
