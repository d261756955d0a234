-- Purpose: the pool images that are least like any class to a generation's teacher: its probabilities are spread over all
--          of them. Logits are not stored, so there is no energy; entropy, and of equals the mass outside the kept classes,
--          take its place. An image between two classes has a low entropy beside one that is like none.
-- Inputs:  stored_labels, stored_images, stored_classes.
-- Grain:   one row per image, the highest entropy first. strangeness is entropy / ln(number of classes), 1 for no idea; 0
--          where there is one class.
-- Parameters: $generation, $limit.
with strangest as (
    select image_id, label, confidence, entropy, tail
    from stored_labels
    where generation = $generation and split = 'unlabeled'
    order by entropy desc, tail desc, image_id
    limit $limit
)
select
    s.image_id, i.uri, c.class_name, s.confidence, s.entropy, s.tail,
    coalesce(s.entropy / nullif(ln((select count(*) from stored_classes)), 0), 0) as strangeness
from strangest as s
left join stored_images as i on i.image_id = s.image_id
left join stored_classes as c on c.label = s.label
order by s.entropy desc, s.tail desc, s.image_id;
