"""The engine: many requests on one context. So far its pure parts; nothing here touches llama.cpp."""
