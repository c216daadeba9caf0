/* nfc.h - Unicode's normal form C: letters and their marks as one character where there is one (utf8proc). */
#ifndef KG_NFC_H
#define KG_NFC_H

#include "kigo.h"

/* Can the text differ from its normal form? False for ASCII and most Latin text, after one quick look. */
bool kg_nfc_may_change(const char *text, size_t size);
/* Append the normal form of a text. Bytes that are no UTF-8 stay as they are. Time is linear: a run of more than a few
 * kilobytes of marks is cut into parts that are normalized one by one. */
int kg_nfc_append(const char *text, size_t size, kg_bytes *out, kg_error *err);

#endif
