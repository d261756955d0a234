-- Purpose: rows that stand before where they belong: labels ascend over all files; within a label those policies
--          that rank by confidence put the more confident first and, of equals, the lower image_id,
--          unless what people accepted comes first (accepted_first.sql).
-- Inputs:  rows (in the order of the files; file and file_row_number say where a row stands).
-- Grain:   one row per row that should stand before the one it follows; none in a sound manifest.
-- Parameters: $policy, $accepted.
select file, file_row_number, image_id, label, confidence, label_before, confidence_before
from (
    select
        file, file_row_number, image_id, label, confidence,
        -- "over ()" follows the order in which the files are read, without sorting the whole manifest
        lag(label) over () as label_before,
        lag(confidence) over () as confidence_before,
        lag(image_id) over () as image_before
    from rows
)
where label < label_before
   or $policy in (
          'top', 'threshold', 'soft-weight', 'class-adaptive', 'self-adaptive', 'percentile', 'precision'
      ) and not $accepted and label = label_before
      and (confidence > confidence_before or confidence = confidence_before and image_id < image_before)
order by file, file_row_number;
