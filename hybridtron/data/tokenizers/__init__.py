"""Text to token ids and back.

tokenizer        the protocol, and load_tokenizer()
byte             the bytes of the text
hugging_face     a tokenizer.json
end_of_document  which of its tokens ends a document, and how no text gives that one
windows          long texts encoded in windows
"""
