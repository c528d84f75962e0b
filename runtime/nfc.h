/* Unicode Normalization Form C (UAX 15). Tables: nfc.def. */
#ifndef STRATA_RUNTIME_NFC_H
#define STRATA_RUNTIME_NFC_H
#include "base/str.h"

/* Whether text can be cut in front of this character: nothing before it changes what it becomes. */
bool nfc_begins(uint32_t cp);
/* Whether a text holds only characters below U+0300, which are normal as they are. */
bool nfc_plain(struct str s);
/* Appends the normal form of valid UTF-8. */
void nfc_add(struct str s, struct sb *out);
#endif
