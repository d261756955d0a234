-- Purpose: the images that a filter lets through; a parameter that is null lets everything through.
-- Inputs:  chosen (rows of the table browse, or what stands in for it).
-- Grain:   one row per image.
-- Parameters: $generation, $split, $label, $text (part of the uri, in any case), and ranges, ends included:
--             $confidence_from, $confidence_to, $margin_from, $margin_to, $entropy_from, $entropy_to.
select image_id, split, label, confidence, margin, entropy, uri, shard, byte_offset, byte_length
from chosen
where generation = $generation
  and ($split::VARCHAR is null or split = $split)
  and ($label::INT is null or label = $label::SMALLINT)
  and ($confidence_from::FLOAT is null or confidence >= $confidence_from::FLOAT)
  and ($confidence_to::FLOAT is null or confidence <= $confidence_to::FLOAT)
  and ($margin_from::FLOAT is null or margin >= $margin_from::FLOAT)
  and ($margin_to::FLOAT is null or margin <= $margin_to::FLOAT)
  and ($entropy_from::FLOAT is null or entropy >= $entropy_from::FLOAT)
  and ($entropy_to::FLOAT is null or entropy <= $entropy_to::FLOAT)
  and ($text::VARCHAR is null or contains(lower(uri), lower($text)));
