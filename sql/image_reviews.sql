-- Purpose: what people decided on one image, the newest decision first.
-- Inputs:  stored_reviews, stored_classes.
-- Grain:   one row per decision.
-- Parameters: $image_id.
select
    r.decided_at, r.reviewer, r.decision, c.class_name as new_class, r.generation::INT as generation, r.reason
from stored_reviews as r
left join stored_classes as c on c.label = r.new_label
where r.image_id = $image_id
order by r.decided_at desc, r.decision desc, r.new_label;
