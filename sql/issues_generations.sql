-- Purpose: the class that a generation's teacher gave to each pool image beside what the next generation says of it.
-- Inputs:  stored_labels, stored_classes.
-- Grain:   one row per image that both labeled. `share` is what each class has that was cut from the later soft label:
--          tail / (C - K).
-- Parameters: $generation.
select
    later.image_id, earlier.label::INT as given, later.label::INT as label, later.confidence,
    later.top_classes, later.top_probs,
    later.tail::DOUBLE / greatest((select count(*) from stored_classes) - len(later.top_classes), 1) as share
from stored_labels as earlier
join stored_labels as later on later.image_id = earlier.image_id
where earlier.generation = $generation and earlier.split = 'unlabeled'
  and later.generation = $generation + 1 and later.split = 'unlabeled';
