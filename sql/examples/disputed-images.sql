-- Purpose: images on which decisions differ, with all of them.
-- Inputs:  reviews, images.
-- Grain:   one row per image, the most decisions first.
select r.image_id, i.uri, count(*) as decisions, string_agg(r.reviewer || ': ' || r.decision, ', ' order by decided_at) as said
from reviews as r
join images as i using (image_id)
group by r.image_id, i.uri
having count(distinct (r.decision, r.new_label)) > 1
order by decisions desc, r.image_id
limit 200;
