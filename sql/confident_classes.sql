-- Purpose: the class that each image confidently is: the most probable one of those whose threshold it reaches; a
--          probability may miss it by 1e-6, so that equal ones reach their own mean. Only kept classes count.
-- Inputs:  self_confidences, thresholds (class_thresholds).
-- Grain:   one row per row of self_confidences; `confident` is null where the image reaches no threshold.
select
    s.*,
    list_filter(
        s.top_classes, lambda class, place: s.top_probs[place] >= t.least[class + 1] - 1e-6
    )[1]::INT as confident
from self_confidences as s
cross join (select list(threshold order by label) as least from thresholds) as t;
